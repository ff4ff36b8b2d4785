"""Linear and nearest-neighbour probes, of patients and of labelled tiles."""
