"""The models on sale, as rows of data."""
