"""Whether a text refuses to answer, in thirteen languages."""

from __future__ import annotations

import re
import unicodedata

_REFUSALS = re.compile(
    r"\A\W*(?:"
    r"(?:i'?m|i am) (?:really |very |so )?(?:sorry|afraid)\b.{0,60}"
    r"\b(?:can'?t|cannot|can not|unable|not able|won'?t)\b"
    r"|(?:sorry|unfortunately|apologies),?.{0,30}\b(?:i|we) (?:can'?t|cannot|can not|am unable"
    r"|are unable|am not able|won'?t)\b"
    r"|i (?:can'?t|cannot|can not|won'?t|will not|am unable to|am not able to|must decline to)"
    r" (?:help|assist|answer|provide|comply|do that|fulfil|fulfill|continue|discuss|create|write)"
    r"|as an? (?:ai|artificial intelligence|large language model|language model)\b"
    r"|i(?:'m| am) (?:just |only )?an? (?:ai|language model)\b.{0,60}\b(?:can'?t|cannot|unable)"
    r"|(?:lo siento|perdón|disculpa),?.{0,40}\bno puedo\b|no puedo (?:ayudar|responder|cumplir)"
    r"|(?:je suis )?désolée?,?.{0,40}\bje ne peux pas\b"
    r"|je ne peux pas (?:vous |t')?(?:aider|répondre)"
    r"|(?:es tut mir (?:sehr )?leid|entschuldigung|leider),?.{0,40}\bkann ich\b.{0,40}\bnicht\b"
    r"|(?:es tut mir (?:sehr )?leid|entschuldigung),?.{0,40}\bich kann\b.{0,60}\bnicht\b"
    r"|(?:desculpe|lamento|sinto muito),?.{0,40}\bnão posso\b"
    r"|(?:mi dispiace|spiacente),?.{0,40}\bnon posso\b"
    r"|(?:很抱歉|抱歉|对不起|對不起).{0,20}(?:无法|無法|不能)"
    r"|(?:申し訳|すみません).{0,40}(?:できません|できかねます)"
    r"|죄송.{0,30}(?:없습니다|어렵습니다)"
    r"|(?:к сожалению|извините|простите),?.{0,30}не (?:могу|можем)"
    r"|(?:ക്ഷമിക്കണം|ക്ഷമിക്കുക|ഖേദിക്കുന്നു).{0,60}(?:കഴിയില്ല|സാധിക്കില്ല|സാധ്യമല്ല)"
    r"|(?:عذر|آسف|أعتذر).{0,40}(?:لا أستطيع|لا يمكنني|لا يمكن)"
    r"|(?:क्षमा करें|माफ़ कीजिए|माफ कीजिए|मुझे खेद है).{0,60}(?:नहीं|असमर्थ)"
    r")",
    re.I | re.S,
)
_LONGEST_REFUSAL = 400
"""Characters; a longer text that begins like a refusal goes on to answer."""


def is_refusal(text: str) -> bool:
    """Whether a text begins as a refusal and is too short to go on to answer."""
    start = unicodedata.normalize("NFKC", text.strip()).replace(
        "\N{RIGHT SINGLE QUOTATION MARK}", "'"
    )
    return len(start) <= _LONGEST_REFUSAL and _REFUSALS.match(start) is not None
