"""nn.Modules from [B, T, D] to [B, T, D]. They take tensors, never a Batch, and know no loss."""
