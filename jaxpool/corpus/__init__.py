"""Files of texts in, files of embeddings out, in bounded memory."""
