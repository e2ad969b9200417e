"""A trained model -> a folder for others: in our format, with its code beside it, or under the released names."""
