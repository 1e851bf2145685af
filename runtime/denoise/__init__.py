"""The hot path: from noise to latents."""
