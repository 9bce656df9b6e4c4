"""Other ways to compute what a mechanism computes; without this folder all of them run, only slower."""
