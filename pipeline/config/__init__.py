"""Configuration: frozen dataclasses that hold every default once, validated at the door."""
