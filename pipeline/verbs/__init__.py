"""The verbs of the command line: to launch, to watch, to set a site up."""
