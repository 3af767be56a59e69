"""What runs inside the sandbox: standard library only; the text of these files is what the sandbox is given."""
