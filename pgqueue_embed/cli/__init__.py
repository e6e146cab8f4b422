"""The command line: `pgembed COMMAND`; a file a command."""
