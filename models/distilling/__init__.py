"""How learned compressors get their weights: one recipe for all, in which a host teaches itself to do with less."""
