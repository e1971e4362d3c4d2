"""Stage one and its artifact: source files in, a graph directory out, and its reader."""
