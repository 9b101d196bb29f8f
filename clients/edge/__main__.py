"""`python -m normstream.clients.edge`: the same as `normstream-edge`."""

from normstream.clients.edge.cli import main

main()
