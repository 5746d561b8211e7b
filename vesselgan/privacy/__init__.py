"""All that differential privacy is: accountant, engine, Poisson sampling, step, releases; and attacks."""
