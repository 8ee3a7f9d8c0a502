"""What a recipe needs of accelerators that are not here, by compiling its own steps for them (`jointrd plan`)."""
