"""Differential privacy: accountant, engine, Poisson sampling, step, release counter; and attacks."""
