"""Why the gap is there: what the layers of a fixed model hold of a name, by modality (`explain.explain`)."""
