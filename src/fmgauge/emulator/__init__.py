"""Stand-ins on loopback: the embedded llama.cpp server, its model and its lease.

Knows how to be a server; not who asks it, or what is measured.
"""
