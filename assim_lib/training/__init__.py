"""Training of filters: what determines a run, what it is trained on, and how it is stored."""
