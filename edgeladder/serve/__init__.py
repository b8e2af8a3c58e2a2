"""A run that stays on duty: pictures over HTTP, pictures that arrive in a folder, cameras."""
