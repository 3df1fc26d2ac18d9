"""The tokenizer in a model file: text to token ids and back."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .chat import render_chat
from .encoder import Encoder, SpecialTokens
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing import Any

__all__ = ["StreamDecoder", "Tokenizer"]


class Tokenizer:
    """Text to token ids and back, by what a GGUF file says.

    Tokens are llama.cpp's for the same file and text, but where `pre_tokenizers` says otherwise. Decoding needs no
    library; encoding needs `tokenizers`, chat templates jinja2, both imported when first needed.

    Attributes
    ----------
    n_vocab : int
    bos_id, eos_id, eot_id : int or None
        Begin of a text, its end, the end of a turn in a chat.
    eos_ids : frozenset of int
        All tokens after which nothing more is to be generated.
    chat_template : str or None
        Jinja text.
    """

    def __init__(self, vocabulary: Vocabulary, chat_template: str | None = None) -> None:
        self.vocabulary = vocabulary
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.eot_id, self.eos_ids = vocabulary.eot_id, vocabulary.eos_ids
        self.chat_template = chat_template

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a model file.

        Parameters
        ----------
        metadata : mapping
            `ModelFile.metadata`, or a dict of the same keys and kinds of values.

        Raises
        ------
        ValueError
            The file holds no tokenizer, or a damaged one; the message names the key. A kind of tokenizer that is
            not known is no error before text is encoded.
        """
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ValueError(
                f"metadata tokenizer.chat_template: expected a text, got {type(template).__name__}"
            )
        return cls(Vocabulary.from_metadata(metadata), template)

    @functools.cached_property
    def _encoder(self):
        return Encoder(self.vocabulary)

    @functools.cached_property
    def _special(self):
        return SpecialTokens(self.vocabulary)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
        add_special : bool
            Begin and end with the tokens that the file asks for (``add_bos_token``, ``add_eos_token``).
        parse_special : bool
            Read names of control tokens in the text ("<|im_end|>") as these tokens. Leave it off for text
            from others.

        Raises
        ------
        TypeError
            `text` is no str.
        ValueError
            It holds half of a surrogate pair, or the file's kind of tokenizer is not known.
        ImportError
            `tokenizers` is not installed.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: letter {error.start} is {text[error.start]!a}, half of a surrogate pair"
            ) from None
        vocabulary = self.vocabulary
        encode = self._encoder.encode
        ids = list(vocabulary.before) if add_special else []
        begins = True
        for piece in self._special.split(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += encode(piece, begins)
            begins = isinstance(piece, int)
        return [*ids, *vocabulary.after] if add_special else ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        The space that ``add_space_prefix`` put before a text is taken away again.

        Parameters
        ----------
        ids : iterable of int
        special : bool
            Show control tokens by their names; they are left out otherwise.

        Raises
        ------
        ValueError
            An id is none of the vocabulary's, or the kind of tokenizer is not known.
        """
        text = b"".join([self.piece(token, special) for token in ids])
        if self.vocabulary.add_space_prefix:
            text = text.removeprefix(b" ")
        return text.decode(errors="replace")

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token stands for; of a control token its name if `special`, else nothing."""
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"ids: {token} is none of the {self.n_vocab} tokens")
        self.vocabulary.check_model()
        return self.vocabulary.piece(int(token), special)

    def stream(self, special: bool = False) -> StreamDecoder:
        """A decoder for tokens that come one by one."""
        return StreamDecoder(self, special)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **more: Any
    ) -> str:
        """The text of a conversation, as the model was trained on it.

        Parameters
        ----------
        messages : sequence of mappings
            Each with "role" ("system", "user", "assistant", ...) and "content".
        add_generation_prompt : bool
            End with what the assistant's answer follows on.
        **more
            What else the file's template reads: tools, enable_thinking, ...

        Raises
        ------
        ValueError
            The file has no template, or it refuses these messages.
        ImportError
            jinja2 is not installed.
        """
        if self.chat_template is None:
            raise ValueError(
                "metadata tokenizer.chat_template is missing: the model is not one for conversations; "
                "give it a text to go on with"
            )
        variables = {
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._name(self.bos_id),
            "eos_token": self._name(self.eos_id),
            "tools": None,
            "documents": None,
        }
        return render_chat(self.chat_template, messages, variables | more)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **more: Any
    ) -> list[int]:
        """Token ids of a conversation: of `apply_chat_template`, with one begin of text, whoever writes it."""
        text = self.apply_chat_template(messages, add_generation_prompt, **more)
        begin = self._name(self.bos_id)
        ids = self.encode(text, add_special=False, parse_special=True)
        return ids if begin and text.startswith(begin) else [*self.vocabulary.before, *ids]

    def _name(self, token):
        return "" if token is None else self.vocabulary.tokens[token]

    def __repr__(self) -> str:
        pre = f", {self.vocabulary.pre}" if self.vocabulary.pre else ""
        return f"<Tokenizer: {self.vocabulary.model}{pre}, {self.n_vocab} tokens>"


class StreamDecoder:
    """Text of tokens that come one by one: a letter is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """What is whole with this token; "" while it is not."""
        return self._decoder.decode(self._tokenizer.piece(token, self._special))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for half a letter. The decoder then begins anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
