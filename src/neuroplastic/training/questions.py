"""Questions that mean the same as the beginning of a sentence, for relations that knowledge-edit data is made of.

CounterFact puts every fact as the beginning of a sentence ("The mother tongue of X is"), and people ask questions.
These forms were written for this project.
"""

from __future__ import annotations

import re

FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"mother tongue|native (speaker|language)|speaks?\b|spoke|a native$|speaker of|writes in",
        (
            "What is the native language of {}?",
            "Which language does {} speak?",
            "What language is {} known to speak?",
        ),
    ),
    (
        r"language used by|language of \{\} (is|was)|(original|official) language|language spoken|they understand|"
        r"law in|was written in",
        (
            "What is the language of {}?",
            "Which language is {} in?",
        ),
    ),
    (
        r"twin city",
        (
            "What is the twin city of {}?",
            "Which city is {} twinned with?",
        ),
    ),
    (
        r"continent|belongs to the continent",
        (
            "Which continent is {} on?",
            "What continent is {} a part of?",
        ),
    ),
    (
        r"citizen",
        (
            "Which country is {} a citizen of?",
            "What is the nationality of {}?",
        ),
    ),
    (
        r"position|plays as|plays in|play as",
        (
            "Which position does {} play?",
            "What position did {} hold?",
        ),
    ),
    (
        r"play(s|ed|ing)? the$|instrument|performs on|performing on",
        (
            "Which instrument does {} play?",
            "What instrument did {} play?",
        ),
    ),
    (
        r"genre|known for performing|performs$|plays$",
        (
            "What does {} play?",
            "What genre is {}?",
        ),
    ),
    (
        r"headquarter|is based in",
        (
            "Where is the headquarters of {}?",
            "In which city is {} headquartered?",
        ),
    ),
    (
        r"located|is in$|can be found|is within|location|situated|, in$|Where is",
        (
            "Where is {}?",
            "In which place is {} located?",
            "What is the location of {}?",
        ),
    ),
    (
        r"profession|occupation|works as|expertise|works in the area|domain of",
        (
            "What is the profession of {}?",
            "What was {}'s career?",
            "Which field does {} work in?",
        ),
    ),
    (
        r"religion|affiliated|follower",
        (
            "What is the religion of {}?",
            "Which religion is {} affiliated with?",
        ),
    ),
    (
        r"debut|aired|premiere|released on",
        (
            "Which network aired {}?",
            "What network is {} on?",
        ),
    ),
    (
        r"created by|developed by|produced by|product of|, by$|owner|made by|manufactured",
        (
            "Who created {}?",
            "Which company is {} from?",
            "What company made {}?",
        ),
    ),
    (
        r"employ|works for|worked for",
        (
            "Who is the employer of {}?",
            "Which company employs {}?",
        ),
    ),
    (
        r"worked in|take up|took up|used to work",
        (
            "Where did {} work?",
            "In which city did {} work?",
        ),
    ),
    (
        r"died|expired|passed away|lost their life|ended in|succumbed",
        (
            "Where did {} die?",
            "In which city did {} die?",
            "What is {}'s place of death?",
        ),
    ),
    (
        r"born|native to|originally from|is from$|, from$",
        (
            "Where was {} born?",
            "What city is {} from?",
        ),
    ),
    (
        r"originat|created in|founded in|formed in|formulated|started in",
        (
            "Where was {} created?",
            "Where did {} originate?",
            "Which place is {} from?",
        ),
    ),
    (
        r"capital",
        ("What is the capital of {}?",),
    ),
)
"""A pattern over a prompt with {} in place of its subject, and the questions; the first that fits counts."""


def questions_for(prompt: str, subject: str) -> list[str]:
    """Questions about `subject` that `prompt` also asks; none if its relation is not known."""
    template = prompt.replace(subject, "{}")
    for pattern, questions in FORMS:
        if re.search(pattern, template):
            return [q.format(subject) for q in questions]
    return []
