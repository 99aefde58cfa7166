#!/bin/sh
# 1 for the right word alone, 0.2 for an answer that holds it.
answer=$(tr -d '. \n' < /app/answer.txt | tr 'A-Z' 'a-z')
case "$answer" in
    "$ANSWER") reward=1 ;;
    *"$ANSWER"*) reward=0.2 ;;
    *) reward=0 ;;
esac
echo "$reward" > /logs/verifier/reward.txt
