"""How the parts are put together: the command line, the local stack, the deployment files."""
