"""BERT, RoBERTa (with XLM-R, CamemBERT, BERTweet) and DistilBERT."""
