"""How edges are scored and what training minimises; a function of the rows it is given."""
