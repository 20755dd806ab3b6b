"""What engines load: maps of experts, permuted checkpoints and launch lines, each read again after writing."""
