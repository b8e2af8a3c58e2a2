"""What runs on a box: standard library only, sent over SSH with every call, nothing to install.

Kept to the syntax of Python 3.8, so that a box whose Python is too old for edgeladder can still
say so. The controller sends these modules' sources, then one JSON request; `serve` answers with
one JSON line. There is no operation that reads a file of the box other than those named in
`jobs.PULLABLE` and `jobs.FOLLOWED`, and none that runs a command line of the controller's:
`commands` builds it here, from typed arguments. Pictures cannot be asked for.
"""
