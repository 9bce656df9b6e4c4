"""Pictures of dense tasks: predictions beside truth, confusions, and precision over recall."""
