"""What a run leaves behind, how it is identified, and how it goes on."""
