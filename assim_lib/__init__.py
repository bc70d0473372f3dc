"""Amortized assimilation: recurrent neural ensemble filters, trained from noisy observations alone."""
