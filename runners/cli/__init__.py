"""The command line: flags, what verbs share, and what is shown while work runs."""
