"""What we measure. Read the ratios: machines are shared and noisy."""
