"""Refusals in Spanish, of models that are asked to translate: patterns for the start of a normalised answer.

They are narrower than the English ones, since the answer is a translation of a question that may itself begin
with what its asker cannot do ("No puedo dormir, ¿qué hago?"). So a decline names help to the one who asks
("ayudarte"), or a thing that is asked of a model ("proporcionar información"), and no sentence that is a
question declines. Accents may be missing.
"""

# Behind "no" it is Spanish, so no English opener ("No, healthcare is not free") is to be taken off.
SPANISH_NO = r" (?:puedo|podemos|podr[eé]|podr[ií]a|voy|vamos|debo|soy|estoy|tengo|me|se|es|ser[ií]a)\b"
NO_QUESTION, NO_PART_ASKS = r"(?![^.!?¿]*\?)", r"(?![^.!?]*\?)"

THING = (
    r"(?:informaci[oó]n|instrucciones|ayuda|asistencia|consejos?|detalles|pasos|orientaci[oó]n|gu[ií]as?|"
    r"traducci[oó]n|traducciones|respuestas?|contenidos?|sugerencias|recomendaciones|asesoramiento|"
    r"m[eé]todos|t[eé]cnicas|ejemplos|ideas|eso|esto)\b"
)
WHICH = (
    r"(?:una?|la|el|las|los|m[aá]s|ning[uú]na?|es[ae]s?|est[ae]s?|ese tipo de|este tipo de|dich[ao]s?|tu|su)"
)
ASKED = r"(?:pregunta|solicitud|petici[oó]n|consulta)\b"
SPOKEN = rf"(?:{ASKED}|(?:audio|texto|contenido|mensaje|frase|grabaci[oó]n)\b)"
ENDING = "[aeiáéí]r"  # of an infinitive, accented before two pronouns ("proporcionártelo")
# With "le" it is the asker's own aunt who cannot be helped ("ayudarle a mi tía").
OWN = r"(?! (?:a|con) (?:mis?|una?|el|la|los|las|nuestr[ao]s?)\b)"
HELP = (
    rf"(?:(?:ayud|asist|apoy|respond|contest|proporcion|brind|d|ofrec|facilit|dec|explic|ense[nñ]|mostr|gui|"
    rf"orient|aconsej|recomend|suger){ENDING}(?:te|os)(?:l[ao]s?)?\b|"
    rf"(?:ayud|asist|proporcion|brind|ofrec|facilit){ENDING}(?:les?|l[ao]s?|se(?:l[ao]s?)?)\b{OWN}|"
    rf"(?:proporcionar|brindar|dar|ofrecer|facilitar|compartir|generar|crear) (?:{WHICH} )*{THING}|"
    r"(?:ayudar|asistir|colaborar|participar) (?:con|en) (?:(?:eso|esto|ello|ese tipo|este tipo|ning[uú]na?|"
    rf"actividades|nada que)\b|{WHICH} {ASKED})|"
    rf"(?:responder|contestar|cumplir|atender|procesar|aceptar)(?: a| con)? {WHICH} {ASKED}|"
    rf"traducir (?:eso|esto|{WHICH} {SPOKEN}|contenido|ning[uú]n)|"
    r"(?:promover|fomentar|alentar|incitar|condonar|respaldar)\b)"
)
UNABLE = (
    r"(?:puedo|podemos|podr[eé]|podr[ií]a|voy a|vamos a|debo|soy capaz de|tengo la capacidad (?:de|para)|"
    r"(?:estoy|tengo) (?:en condiciones|en posici[oó]n|capacitad[ao]|autorizad[ao]|habilitad[ao]|"
    r"dispuest[ao]|permitido|permiso)(?: (?:de|para|a))?|"
    r"me est[aá] permitido|se me permite|(?:me )?(?:es|ser[ií]a|resulta) posible|"
    r"(?:es|ser[ií]a) (?:apropiado|[eé]tico|correcto|adecuado|aceptable|legal)"
    r"(?: (?:ni|o|y) (?:\w+ )?\w+)?)"
)
OPENER = (
    r"(?:(?:hola|lo siento(?: mucho| much[ií]simo)?|lo lamento(?: mucho)?|lamento|(?:mis )?disculpas?|"
    r"disculpe|perd[oó]n|perdona|perdone|lamentablemente|desafortunadamente|desgraciadamente|por desgracia|"
    r"me temo que|pero|sin embargo|en este caso|yo)[,.:;!]* )*"
)
CANNOT = (
    rf"{NO_QUESTION}{OPENER}(?:no {UNABLE} {HELP}|me niego a {HELP}|(?:siento|lamento) no poder {HELP}|"
    rf"(?:debo|tengo que) (?:declinar|rechazar) {WHICH} {ASKED})"
)
MODEL = (
    r"(?:ia|inteligencia artificial|modelo de (?:lenguaje|ia|inteligencia)|"
    r"asistente (?:virtual|digital|de ia|de inteligencia))\b"
)

SPANISH_DECLINES = (
    rf"{NO_PART_ASKS}lo siento(?: mucho| much[ií]simo)?(?=[,.!;:]|$| (?:pero|no)\b)",
    CANNOT,
    rf"{NO_QUESTION}(?:como|soy|al ser) (?:una? )?{MODEL}[^,.]{{0,60}}[,.]? "
    r"(?:y |pero |por lo que )?no (?:puedo|tengo|estoy|debo|soy)\b",
    r"(?:entiendo|comprendo|agradezco|gracias por|s[eé] que|me (?:gustar|encantar)[ií]a (?:poder )?ayudar)"
    rf"[^.!?]{{0,150}}[,.;] (?:pero |sin embargo,? |no obstante,? ){CANNOT}",
)
