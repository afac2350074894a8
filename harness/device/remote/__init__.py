"""Boards of other machines, reached through the OpenSSH client."""
