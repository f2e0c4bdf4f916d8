"""`jaxpool serve`: OpenAI's, vLLM's, Cohere's and TEI's endpoints over one engine a model."""
