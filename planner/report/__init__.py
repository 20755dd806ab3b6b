"""What a person sees. No computation here."""
