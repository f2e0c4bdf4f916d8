"""jaxpool inside other systems: each file holds one of them, and needs it only when it is used."""
