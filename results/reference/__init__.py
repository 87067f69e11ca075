"""Our own runs; what CAB itself reads of them is data of the package ``cab.reference``."""
