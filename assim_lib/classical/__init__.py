"""Classical methods on the same truth and observations: DAPPER's, tuned on validation data, and one EnKF to be read.

``methods`` runs one, ``contenders`` says which are compared in which setting, ``search`` tunes them, and
``dapper_bridge`` hands DAPPER a twin experiment of this book. DAPPER itself is imported when a method runs, not
before.
"""
