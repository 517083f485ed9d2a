"""What a published dataset holds: looked at, asked, compared and shown; needs no MindSpore, and extras only inside."""
