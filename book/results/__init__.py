"""Recorded results of full-profile runs; read and written only by ``brainlib.results``."""
