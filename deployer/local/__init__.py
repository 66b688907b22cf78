"""The local platform: predictors, Envoy and their supervisor as processes of one user on one machine.  No Kubernetes in here."""
