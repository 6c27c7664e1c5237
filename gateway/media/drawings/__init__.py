"""The drawings that test keys get: painted in a subprocess, the same for equal requests."""
