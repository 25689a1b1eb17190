"""``andes-opt report``: many runs read, compared, drawn."""
