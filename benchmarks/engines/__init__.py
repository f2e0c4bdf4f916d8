"""One file an engine. Each names its PACKAGES; `load` gives a function from texts to vectors."""
