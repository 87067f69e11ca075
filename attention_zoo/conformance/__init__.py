"""Conformance: whether an attention is what its card says, shown by tests T1 to T14 and written on a certificate.

    T1   dense oracle, gradients too           T8   padding a sample equals cutting it
    T2   options that make it softmax          T9   a sample does not see its batch
    T3   future changed, outputs equal in bits T10  permutation
    T4   prefix consistency                    T11  prefill and steps equal the parallel pass
    T5   future values changed                 T12  weights non-negative, rows sum to one
    T6   what should influence an output does  T13  finite at logits of 1e4; a shift of logits cancels
    T7   content of padded keys                T14  a row that sees nothing is zero, gradients finite

and S1 to S6: determinism in evaluation, state in the state_dict, training = evaluation without dropout, types,
gradients of all parameters, counts and refusals. A test does not apply only where a typed property of the card, or
the pattern, says so; the certificate prints the line with its reason, and a property that is declared falsely fails.

    >>> print(certify(mechanism("linear"), patterns=["causal_self"]))
"""

from attention_zoo.conformance.certificate import Certificate, Mark, PatternCertificate, Result, Status
from attention_zoo.conformance.certify import TESTS, certify
from attention_zoo.conformance.subject import Oracle

__all__ = ["TESTS", "Certificate", "Mark", "Oracle", "PatternCertificate", "Result", "Status", "certify"]
