"""The bundled English tagger: its network, its words, and how often it is right."""
