"""The zoo inside other people's libraries; each module needs its library, and nothing else of the zoo does."""
