"""Training of generators and of the injector."""
