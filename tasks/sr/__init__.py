"""Super-resolution of photographs and faces by a conditional diffusion model."""
