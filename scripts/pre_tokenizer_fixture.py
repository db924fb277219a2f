"""Writes tests/fixtures/tokenizer/pieces.json: a text cut by the patterns that names of `tokenizer.ggml.pre` stand for in llama.cpp, by the
engine of Python's `regex` (`pip install regex`). llama.cpp spells some patterns in another way than tokenizer.json does; on this text both cut
at the same places. Each pattern cuts the pieces that those before left."""

import json
import os

import regex

GPT2=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
AP=r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
T={
'default':[r"[\p{P}\$\+<=>\^~\|]+",GPT2,r"\p{N}+","[0-9][0-9][0-9]"],
'gpt-2':[GPT2],
'llama-bpe':[AP+r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'qwen2':[AP+r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'smollm':[r"\p{N}",GPT2],
'tekken':[r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'gpt-4o':[r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"+AP+r"?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"+AP+r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'deepseek-coder':["[\r\n]",r"\s?\p{L}+",r"\s?\p{P}+","[一-龥ࠀ-一가-퟿]+",r"\p{N}"],
'deepseek-v3':[r"\p{N}{1,3}","[一-龥぀-ゟ゠-ヿ]+","[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"],
'deepseek-llm':["[\r\n]",r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+","\\s?[!-/:-~！-／：-～‘-‟　-。]+",r"\s+$","[一-龥ࠀ-一가-퟿]+",r"\p{N}"],
'falcon':[r"[\p{P}\$\+<=>\^~\|`]+",GPT2,"[0-9][0-9][0-9]"],
'bloom':[" ?[^(\\s|.,!?…。，、।۔،)]+"],
'viking':[" ?[^(\\s|.,!?…。，、।۔،)]+",r"\p{N}"],
'seed-coder':[AP+r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
'bailingmoe':[r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
'jais-2':[AP+r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"],
'exaone-moe':[AP+r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"],
'minicpm5':[r"\p{N}{1,3}",AP+r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'qwen35':[AP+r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'tiny_aya':[r"\d{1,3}(?=(?:\d{3})*\b)",r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"+AP+r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"+AP+r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'youtu':["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"+AP+r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"+AP+r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
'chameleon':["<sentinel:[0-9]+>","(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z","([\t\n]|    |  )",r"\p{N}",r"[\p{P}!-/:-@\[-`{-~]",GPT2],
}
def split(t,ps):
    parts=[t]
    for p in ps:
        out=[]
        for x in parts:
            at=0
            for m in regex.finditer(p,x):
                if m.end()==m.start(): continue
                if m.start()>at: out.append(x[at:m.start()])
                out.append(m.group()); at=m.end()
            if at<len(x): out.append(x[at:])
        parts=out
    return parts
text="It's 12345 fooBar(a,b) I'LL   x\n\n  1/2!\r\n né, 世界 don't+=7"
OUT = os.path.join(os.path.dirname(__file__), '..', 'tests', 'fixtures', 'tokenizer', 'pieces.json')
open(OUT, 'w').write('{\n'+',\n'.join(' %s: %s'%(json.dumps(k),json.dumps(split(text,v),ensure_ascii=False)) for k,v in T.items())+'\n}\n')
